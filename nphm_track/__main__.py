from nphm_track.cli import main

if __name__ == "__main__":
    main()
